"""Rows answered by a vLLM server: a directory that a client machine needs, and the client.

A row is embedded by the client, with the prompt's virtual tokens in their places, and sent as `prompt_embeds`.
`writing` writes the directory and `exported` reads it. `embeddings` embeds, `probes` tell base models apart, `labels`,
`requests` and `chat` say what is asked, `server` and `in_flight` carry it, and `client` is what others use. Knows
nothing of training.
"""
