"""Fakes that ship with the package: scripted parts behind every protocol, and builders of small valid records."""
