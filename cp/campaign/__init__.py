"""Campaigns: a system is started beside all others, loaded, and hurt in every way from outside, again and again.

After each fault the declared state must be reached again without an operator; at the end nothing may be left over.
"""
