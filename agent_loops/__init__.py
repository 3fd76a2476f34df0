"""verl agent loops and the environments they play."""
