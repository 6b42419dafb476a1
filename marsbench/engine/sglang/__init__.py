"""SGLang's own scheduler in virtual time. Only this folder imports sglang."""
