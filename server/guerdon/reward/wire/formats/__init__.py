"""The HTTP formats of other systems, so that their unmodified clients can be pointed here.

One module for each format, over the one scoring path; docs/compatibility.md lists them.
"""
