"""Loss terms, policy losses and advantages as pure functions; the trainer joins them to TRL."""
