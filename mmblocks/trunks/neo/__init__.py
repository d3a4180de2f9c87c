"""NEO's trunk: rows and columns in the attention beside the step."""
