"""OPC UA: a server of our own that shows results and takes part ids, and a client that writes into a PLC's server.

Names follow OPC 40100-1 (Machine Vision) where it has one; this is no certified implementation of it. Only the
registry of sinks imports it, and finds `server.OpcUaServer` and `client.OpcUaClient` here; it imports the sinks'
`reject` and `part_ids`, and the library (asyncua) only where it is used.
"""
