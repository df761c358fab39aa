"""Exit codes of the agent's verbs. Apart from worker_agent.messages: it takes 20 ms to import."""

EXIT_OK = 0
EXIT_FAILED = 1  # the verb could not do it; stdout holds one Refusal
EXIT_USAGE = 2
EXIT_REFUSED = 3  # the verb will not do it (fenced, busy, unknown); stdout holds one Refusal
