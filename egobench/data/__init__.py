"""One sample type, the formats it is read from and written to, and the built-in generator."""
