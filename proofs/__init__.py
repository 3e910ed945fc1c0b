"""Programs that prove something; they are no tests."""
