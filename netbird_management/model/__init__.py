"""Pure values: what an account is made of, its snapshot, and the errors that every layer raises."""
