"""Doors to the libraries that users have today; each file needs its library only where it is used."""
