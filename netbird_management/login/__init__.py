"""Who may sign in, and the tokens that say who did."""
