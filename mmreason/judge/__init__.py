"""The judge service: text (and pictures) in, a verdict out; from the policy, a local model or an endpoint."""
