"""The simulated engine with SGLang's rules: radix tree, prefill before decode, retraction."""
