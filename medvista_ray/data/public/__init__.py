"""Loaders of public data sets as published: files on disk -> drafts, one for each question. Nothing is downloaded."""
