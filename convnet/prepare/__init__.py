"""Stores made once, from folders and archives of pictures, for all runs to come."""
