"""A report of one run or several: one HTML page that needs nothing else, a picture, and every number as JSON."""
