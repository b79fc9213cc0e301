"""What fits other projects: each module is for one of them, and nothing else imports it."""
