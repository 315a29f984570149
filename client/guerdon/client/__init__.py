"""The light client of Guerdon's services: no torch."""
