"""Folders of predictions to tables, pages and pictures."""
