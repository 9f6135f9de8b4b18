"""The connection half: one socket shared by all coroutines, signed in and kept signed in.

Read downwards: ``_routing`` says which commands may share the connection, ``_engine`` matches
replies to callers without any I/O, ``_session`` drives it over one authenticated socket,
``_reauth`` sends each new token in band, and ``_connection`` keeps a session at hand.
"""
