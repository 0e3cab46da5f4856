"""Small programs for the project itself: the site of the documentation, the floor under the coverage."""
