"""Texts: how they are cleaned and cut into the numbers that the text tower reads."""
