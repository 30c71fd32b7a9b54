# SPDX-License-Identifier: Apache-2.0
"""A request whose prompt comes in parts, to an engine in this process."""

import copy


class Session:
    """A request whose prompt comes in parts: vLLM's streaming input, without its event loop."""

    def __init__(self, llm, name, params):
        self.engine, self.name, self.params = llm.llm_engine, name, params
        self.request_id = None  # the one that the engine made of the name

    def send(self, prompt, *, last=False):
        request = self.engine.input_processor.process_inputs(
            self.request_id or self.name,
            {"prompt_token_ids": list(prompt)},
            self.params,
            supported_tasks=self.engine.get_supported_tasks(),
            resumable=not last,
        )
        if self.request_id is None:
            self.engine.input_processor.assign_request_id(request)
            self.request_id = request.request_id
        else:
            request.external_req_id = self.name
        self.engine.output_processor.add_request(request, None, None, 0)
        # The core of the engine, in a process of its own as a rule, extends its prompt.
        self.engine.engine_core.add_request(copy.deepcopy(request))

    def listen(self, num_tokens):
        """Return the next tokens of the answer, which comes in deltas."""
        tokens = []
        for _ in range(200):
            for output in self.engine.step():
                if output.request_id == self.name:
                    tokens += output.outputs[0].token_ids
            if len(tokens) >= num_tokens:
                return tokens
        raise AssertionError(f"{len(tokens)} tokens of {num_tokens}")
