"""The page that shows runs, and what their networks make of a picture: a server for this machine alone, and what it
tells, computed without any web."""
