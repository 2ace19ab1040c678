"""What several folders of `l1rr_fx` need, and none of them owns. It imports no other folder of `l1rr_fx`.

arguments     the arguments of public functions, checked
checks        the content of files that were read, checked
documents     frozen dataclasses as JSON, or as a line of numbers, and back
files         directories of files written whole or not at all
json_text     JSON texts of others, read within limits
functions     a function named on the command line
packages      optional dependencies, imported where they are used
signatures    the structure and sizes of a call's arguments
tables        tables as plain text
clock         seconds by phase
"""
