"""Tasks: generators of rows with exact answers, and readers of the user's own files."""
