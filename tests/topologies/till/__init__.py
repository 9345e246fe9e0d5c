"""A package of programs for the topologies of this folder."""
