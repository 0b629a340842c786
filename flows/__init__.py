"""What a person starts: one file a flow, composition and parameters only, plus the command line."""
