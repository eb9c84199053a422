#!/usr/bin/env python3
"""A container's process is killed: how long until the API is told, and until its next run is Ready, as seen on a watch.
usage: killed.py KUBECONFIG [COUNT]; as root on the node's machine."""
import base64
import glob
import http.client
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

PODS = "/api/v1/namespaces/default/pods"
GONE = ("", 0, False)
JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def connections(kubeconfig):
    command = ["kubectl", "--kubeconfig", kubeconfig, "config", "view", "--raw", "--flatten", "-o", "json"]
    config = json.loads(subprocess.check_output(command))
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    with tempfile.TemporaryDirectory() as place:
        files = []
        for index, data in enumerate(
            [cluster["certificate-authority-data"], user["client-certificate-data"], user["client-key-data"]]
        ):
            files.append(os.path.join(place, str(index)))
            with open(files[-1], "wb") as file:
                file.write(base64.b64decode(data))
        context = ssl.create_default_context(cafile=files[0])
        context.load_cert_chain(files[1], files[2])
    host = cluster["server"].split("//")[1]
    return lambda: http.client.HTTPSConnection(host, context=context)


def ask(connection, method, path, body=None):
    connection.request(method, path, body=body and json.dumps(body), headers=JSON)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {text[:300]}")
    return json.loads(text)


class Watch(threading.Thread):
    """Keeps what each pod's only container looks like, with the time of each change."""

    def __init__(self, connect):
        super().__init__(daemon=True)
        self.connection, self.changes, self.news = connect(), {}, threading.Condition()
        version = ask(self.connection, "GET", PODS)["metadata"]["resourceVersion"]
        self.connection.request("GET", f"{PODS}?watch=1&resourceVersion={version}", headers=JSON)
        self.stream = self.connection.getresponse()
        self.start()

    def run(self):
        for line in self.stream:
            event, now = json.loads(line), time.monotonic()
            pod = event["object"]
            if event["type"] == "DELETED":
                with self.news:
                    self.changes[pod["metadata"]["name"]] = [(now, GONE)]
                    self.news.notify_all()
                continue
            for status in pod.get("status", {}).get("containerStatuses", []):
                seen = (status.get("containerID", ""), status["restartCount"], status["ready"])
                with self.news:
                    self.changes.setdefault(pod["metadata"]["name"], []).append((now, seen))
                    self.news.notify_all()

    def until(self, name, wanted):
        """The first change of a pod's container that is wanted, with its time."""
        with self.news:
            while True:
                for at, seen in self.changes.get(name, []):
                    if wanted(seen):
                        return at, seen
                if not self.news.wait(60):
                    raise SystemExit(f"{name}: nothing for a minute: {self.changes.get(name)}")


def processes(container):
    """Processes of a container, by its cgroup, on either version."""
    for pattern in (f"/sys/fs/cgroup/memory/**/*{container}*/cgroup.procs", f"/sys/fs/cgroup/**/*{container}*/cgroup.procs"):
        for path in glob.glob(pattern, recursive=True):
            with open(path) as file:
                found = [int(line) for line in file]
            if found:
                return found
    raise SystemExit(f"no processes of container {container}")


def main():
    connect, count = connections(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15
    watch, connection, told, again = Watch(connect), connect(), [], []
    for index in range(count):
        name = f"killed-{index}"
        container = {"name": "c", "image": "docker.io/library/busybox:1.36", "imagePullPolicy": "Never"}
        container["command"] = ["sleep", "3600"]
        spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
        ask(connection, "POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        _, (first, _, _) = watch.until(name, lambda seen: seen[2])
        pids = processes(first.split("://")[1])
        time.sleep(0.2)
        killed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ended = lambda seen: seen[1] > 0 or (seen[0] == first and not seen[2])
        with watch.news:
            watch.changes[name] = [change for change in watch.changes[name] if change[0] > killed]
        told.append(watch.until(name, ended)[0] - killed)
        again.append(watch.until(name, lambda seen: seen[1] == 1 and seen[2])[0] - killed)
        ask(connection, "DELETE", f"{PODS}/{name}")
        watch.until(name, lambda seen: seen == GONE)  # Its removal would be work beside the next one's.
    for what, times in (("told", told), ("running again", again)):
        print(f"killed to {what}: p50 {statistics.median(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms (n={count})")


main()
