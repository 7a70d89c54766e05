#!/usr/bin/env python3
"""Stands in for a captcha server and the faucet behind it, on a free port of 127.0.0.1, in front of a node of a test chain.

usage: captcha_faucet.py NODE_URL sent|derived

The captcha server is http://127.0.0.1:PORT with any path segment as the key, the faucet http://127.0.0.1:PORT/faucet. With
"sent" the puzzles are in the challenge, with "derived" they follow from its token. Each challenge and each token is good
for one try. Prints "Listening on 127.0.0.1:PORT", then a line for each question.
"""

import hashlib
import http.server
import json
import os
import re
import sys
import urllib.request

NODE, FORM = sys.argv[1], sys.argv[2]
PUZZLES, SALT_DIGITS, TARGET_DIGITS = 3, 32, 3
# What is given: a tenth of an ETH.
GIFT_WEI = 10**17

challenges, tokens = {}, set()


def call_node(method, parameters):
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    body = json.dumps(request).encode()
    headers = {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(NODE, body, headers), timeout=30) as answer:
        return json.load(answer)["result"]


def derived(seed, digits):
    state = 0x811C9DC5
    for byte in seed.encode():
        state = (state ^ byte) * 0x01000193 & 0xFFFFFFFF
    text = ""
    while len(text) < digits:
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        text += f"{state:08x}"
    return text[:digits]


def new_challenge():
    token = os.urandom(25).hex()
    if FORM == "sent":
        pairs = [[os.urandom(16).hex(), os.urandom(4).hex()[:TARGET_DIGITS]] for _ in range(PUZZLES)]
        sent = pairs
    else:
        numbers = range(1, PUZZLES + 1)
        pairs = [
            [derived(f"{token}{n}", SALT_DIGITS), derived(f"{token}{n}d", TARGET_DIGITS)]
            for n in numbers
        ]
        sent = {"c": PUZZLES, "s": SALT_DIGITS, "d": TARGET_DIGITS}
    challenges[token] = pairs
    return {"challenge": sent, "token": token, "expires": 9999999999999}


def redeem(question):
    pairs = challenges.pop(question.get("token"), None)
    if pairs is None:
        return 403, {"success": False, "message": "Challenge expired"}
    solutions = question["solutions"]
    if FORM == "sent":
        if [solution[:2] for solution in solutions] != pairs:
            return 403, {"success": False, "message": "Invalid solution"}
        solutions = [solution[2] for solution in solutions]
    for (salt, target), nonce in zip(pairs, solutions, strict=True):
        if not hashlib.sha256(f"{salt}{nonce}".encode()).hexdigest().startswith(target):
            return 403, {"success": False, "message": "Invalid solution"}
    token = os.urandom(15).hex()
    tokens.add(token)
    return 200, {"success": True, "token": token, "expires": 9999999999999}


def give(question):
    if question.get("captchaToken") not in tokens:
        return 403, {"error": "invalid captcha"}
    tokens.discard(question["captchaToken"])
    giver = call_node("eth_accounts", [])[-1]
    gift = {"from": giver, "to": question["address"], "value": hex(GIFT_WEI)}
    return 200, {"txHash": call_node("eth_sendTransaction", [gift])}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        print(self.command, self.path, flush=True)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        question = json.loads(self.rfile.read(length) or b"{}")
        if re.fullmatch(r"/[^/]+/api/challenge", self.path):
            status, answer = 200, new_challenge()
        elif re.fullmatch(r"/[^/]+/api/redeem", self.path):
            status, answer = redeem(question)
        elif self.path == "/faucet/api/faucet":
            status, answer = give(question)
        else:
            status, answer = 404, {"error": "not found"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"Listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
