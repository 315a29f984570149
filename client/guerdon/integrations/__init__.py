"""Guerdon's rewards inside other systems: one module for each, which alone imports that system."""
