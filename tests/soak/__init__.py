"""A year in minutes: tokens of four seconds, faults all along, and a model of what must hold.

``python -m soak --minutes 15``; ``nox -s soak`` passes it on. Clients with token sources of their
own sign in to the emulator, whose tokens live for four seconds and are renewed every one, under a
mixed load. Meanwhile a seeded schedule of faults strikes: connections cut, the server restarted,
the identity provider down or silent, AUTH refused or slow, the event loop stalled, callers
cancelled.

==============  ==================================================================================
``schedule``    which faults there are, when they strike, and what each of them excuses
``outcomes``    what an error says of the command that it ended
``findings``    what was found to be broken
``model``       what each key must hold, each queue deliver, each subscriber be told
``calls``       the way of every call of the load: counted, judged, cancelled now and then
``load``        commands, pipelines, transactions and scripts
``queues``      producers and consumers: lists and streams
``channels``    publishers and subscribers
``parties``     the clients and their token sources
``strikes``     carries the faults out
``ledger``      from the server's log: was every AUTH in time, did a token end a connection
``measures``    memory, tasks and sockets, and whether they are flat
``run``         all of it together
``report``      the table at the end
==============  ==================================================================================
"""
