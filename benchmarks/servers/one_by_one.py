"""The project's own server without its batches: each request is computed alone.

python one_by_one.py <package> <option of serve>...
"""

import asyncio
import importlib
import sys

package = sys.argv.pop(1)
model_versions = importlib.import_module(f"{package}.engine.serving.model_versions")


class Alone:
    def __init__(self, run, max_batch_size, limits, thread, open_requests, metrics):
        self.run, self.thread = run, thread

    def submit(self, inputs, done):
        if self.thread is None:
            done(self.run(inputs))
            return
        running = asyncio.get_running_loop().run_in_executor(self.thread, self.run, inputs)
        running.add_done_callback(lambda future: done(future.result()))


model_versions.Batcher = Alone

if __name__ == "__main__":
    sys.argv.insert(1, "serve")
    importlib.import_module(f"{package}.engine.commands").main(())
