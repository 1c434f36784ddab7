"""Text and who writes it: the rollout, decoding, and the samplers.

Import from the modules: `rollout` (the carrier), `decoding` and `sampling` (how a model writes), `samplers`
(who writes), `store` (text on disk).
"""
