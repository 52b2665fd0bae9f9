"""What will be read soon: predictors, streams, budgets. Events in, plans out."""
