"""What everything else may use: checks of arguments, names that libraries have changed, pickling without weights."""
