"""What is wrong with the settings, as sentences, before anything starts."""
