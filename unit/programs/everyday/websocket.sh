# needs: /usr/bin/python3
# ports: 8765
# needs-python: websockets
serve() {
    cat >"$D/serve.py" <<'PYTHON'
import asyncio, websockets
async def echo(socket, path=None):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, None, 8765, max_size=None):
        await asyncio.Future()
asyncio.run(main())
PYTHON
    exec /usr/bin/python3 "$D/serve.py"
}
ask() {
    cat >"$D/ask.py" <<'PYTHON'
import asyncio, os, websockets
async def main():
    payload = open(os.environ["D"] + "/payload", "rb").read()
    for ip in [os.environ["V4"], "[" + os.environ["V6"] + "]"]:
        async with websockets.connect(f"ws://{ip}:8765/", max_size=None) as socket:
            for n in range(200):
                await socket.send(f"message {n}")
                assert await socket.recv() == f"message {n}"
            await socket.send(payload)
            print("the payload" if await socket.recv() == payload else "NOT the payload")
            await (await socket.ping())
        print("closed with", socket.close_code)
asyncio.run(main())
PYTHON
    /usr/bin/python3 "$D/ask.py"
}
