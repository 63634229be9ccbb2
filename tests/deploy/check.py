"""Holds what kustomize and helm render against Kubernetes, against each other and against forebay: check.py TOOLS FOREBAY"""

import copy
import difflib
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import traceback

import kubernetes_validate
import yaml

TOOLS, FOREBAY = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
CHART = "deploy/helm/forebay"
RELEASE = "forebay"
# The oldest that the chart's kubeVersion takes, and the newest that there are schemas of.
VERSIONS = ["1.25", "1.37"]
PROGRAM = "/usr/local/bin/forebay"
CONFIG = "/etc/forebay/forebay.toml"
# What comes from the operator of Prometheus; Kubernetes has no schema of it.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
CONTAINERS = ["initContainers", "containers"]

ALL = [
    "--set", "hosts.enabled=true,serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true",
]
# Every template and every branch of it, in a few sets of values.
VARIANTS = {
    "cluster": [],
    "cluster with everything": ALL,
    "node": ["--set", "mode=node,prometheusRule.enabled=true"],
    "node with settings": ["--set", "mode=node", "--values", "tests/deploy/settings.yaml"],
    "cluster with settings": [*ALL, "--values", "tests/deploy/settings.yaml"],
    "cluster with secrets of others": [
        "--set", "admin.existingSecret=a,credentials.existingSecret=b,persistence.enabled=false,networkPolicy.enabled=false",
        "--set", "podDisruptionBudget.enabled=false,service.type=ClusterIP,fullnameOverride=cache",
    ],
}
# Values that are refused, and what is said.
REFUSED = {
    "mode=both": "mode",
    "config.server.listen={0.0.0.0:1}": "server",
    "config.storage.path=/x": "storage",
    "config.admin.token=x": "admin",
    "config.sotrage.max_size=1GiB": "sotrage",
    "registries[0].tag_ttl=1m": "host",
    "replcas=2": "replcas",
    "mode=node,serviceMonitor.enabled=true": "use mode: cluster",
    "hosts.enabled=true,service.type=LoadBalancer": "hosts.proxy",
    "admin.token=x,admin.existingSecret=y": "give one of them",
    "credentials.files.a=x,credentials.existingSecret=y": "give one of them",
}


def run(*command, env=None, expect=0):
    done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (expect == 0), f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + ("" if expect == 0 else done.stderr)


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def kustomize(folder):
    return documents(run(TOOLS / "kubectl", "kustomize", folder))


@functools.cache
def template(*values):
    return documents(run(TOOLS / "helm", "template", RELEASE, CHART, "--namespace", RELEASE, *values))


def named(found, kind, name):
    """The one document of this kind; kustomize adds a hash to names of configurations."""
    fits = [one for one in found if one["kind"] == kind and re.fullmatch(name + "(-[a-z0-9]{10})?", one["metadata"]["name"])]
    assert len(fits) == 1, f"{len(fits)} of {kind} {name}"
    return fits[0]


def pods(found):
    """Name and pod template of everything that runs."""
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in found if "template" in one.get("spec", {})]


def claims_of(found, name):
    return [
        claim
        for one in found
        if one["metadata"]["name"] == name
        for claim in one.get("spec", {}).get("volumeClaimTemplates", [])
    ]


def containers(found):
    return [
        (name, pod["spec"], container)
        for name, pod in pods(found)
        for kind in CONTAINERS
        for container in pod["spec"].get(kind, [])
    ]


# ---- the checks ---------------------------------------------------------------------------------------------------


def is_of_kubernetes(found):
    for document in found:
        if document["kind"] in FOREIGN:
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


def names_lead_somewhere(found):
    """Names of configurations and secrets, ports of services and probes, volumes, selectors."""
    configs = {one["metadata"]["name"] for one in found if one["kind"] == "ConfigMap"}
    for name, pod in pods(found):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"]: claim for claim in claims_of(found, name)}
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in configs, f"{name}: {volume}"
        for kind in CONTAINERS:
            for container in pod["spec"].get(kind, []):
                ports = {port["name"] for port in container.get("ports", [])}
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
                    port = container.get(probe, {}).get("httpGet", {}).get("port", 5001)
                    assert port == 5001 or port in ports, f"{name}: {probe}"
                for mount in container.get("volumeMounts", []):
                    assert mount["name"] in volumes, f"{name}: {mount}"
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(found)}
    for one in found:
        selector = one.get("spec", {}).get("selector")
        if one["kind"] in ["StatefulSet", "DaemonSet", "PodDisruptionBudget"]:
            selector = selector["matchLabels"]
        elif one["kind"] != "Service":
            continue
        chosen = [name for name, has in labels.items() if selector.items() <= has.items()]
        assert len(chosen) == 1, f"{one['kind']} {one['metadata']['name']} chooses {chosen}"


def pods_are_careful(found):
    for name, pod, container in containers(found):
        at = f"{name}/{container['name']}"
        security = pod.get("securityContext", {}) | container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], at
        assert security["capabilities"] == {"drop": ["ALL"]}, at
        uses_host = any("hostPath" in volume for volume in pod["volumes"])
        assert security.get("runAsNonRoot") or uses_host, f"{at} runs as root"
        assert pod["automountServiceAccountToken"] is False, at


def image_environment():
    text = pathlib.Path("deploy/Containerfile").read_text()
    found = dict(re.findall(r"(FOREBAY_\w+)=(\S+)", text))
    assert len(found) >= 3, found
    return found


def works_with_forebay(found):
    """Every forebay of these documents, with its file and variables, as far as it goes without a cluster."""
    seen = 0
    for name, pod, container in containers(found):
        words = container.get("command", [PROGRAM, "serve"]) + container.get("args", [])
        if words[0] != PROGRAM:
            continue
        seen += 1
        with tempfile.TemporaryDirectory() as folder:
            try_forebay(found, pathlib.Path(folder), name, pod, container, words)
    assert seen > 0


def try_forebay(found, folder, name, pod, container, words):
    [config] = [volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "config"]
    text = named(found, "ConfigMap", config)["data"]["forebay.toml"]
    secrets = folder / "secrets"
    secrets.mkdir()
    for secret in re.findall(r"/run/secrets/forebay/([\w.-]+)", text):
        (secrets / secret).write_text("s3cret\n")
    file = folder / "forebay.toml"
    file.write_text(text.replace("/run/secrets/forebay", str(secrets)))
    env = {"HOME": "/nonexistent", "FOREBAY_ADMIN__TOKEN": "s3cret"} | image_environment()
    for variable in container.get("env", []):
        if "value" in variable:
            env[variable["name"]] = variable["value"]
    run(FOREBAY, "config", "check", "--config", file, env=env)
    words = [str(file) if word == CONFIG else word.replace("$(NODE_IP)", "10.0.0.5") for word in words[1:]]
    if words[0] == "serve":
        # The command line is understood; what it would do is for a cluster.
        run(FOREBAY, *words, "--help", env=env)
        return
    proxy = words[words.index("--proxy") + 1]
    words[words.index("--root") + 1] = str(folder / "host")
    run(FOREBAY, *words, env=env)
    hosts = (folder / "host/etc/containerd/certs.d/docker.io/hosts.toml").read_text()
    assert f'[host."{proxy}"' in hosts or f'[host."{proxy}/' in hosts, f"{name}: {hosts}"
    assert tomllib.loads(hosts)


def plain(document):
    """Without what the two ways of naming and marking things differ in."""
    document = copy.deepcopy(document)
    metadata = document["metadata"]
    document["metadata"] = {"name": metadata["name"], "namespace": metadata.get("namespace")}
    spec = document.get("spec", {})
    if document["kind"] == "NetworkPolicy":
        # Kustomize's has the namespace to itself; a release shares it.
        del spec["podSelector"]
    elif "selector" in spec:
        del spec["selector"]
    if "template" in spec:
        del spec["template"]["metadata"]
        for volume in spec["template"]["spec"]["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = re.sub("-[a-z0-9]{10}$", "", volume["configMap"]["name"])
        spec["template"]["spec"]["volumes"].sort(key=lambda volume: volume["name"])
        for kind in CONTAINERS:
            for container in spec["template"]["spec"].get(kind, []):
                container.get("volumeMounts", []).sort(key=lambda mount: mount["name"])
    for claim in spec.get("volumeClaimTemplates", []):
        claim["metadata"] = {"name": claim["metadata"]["name"]}
    if document["kind"] == "ConfigMap":
        document["metadata"]["name"] = re.sub("-[a-z0-9]{10}$", "", metadata["name"])
        document["data"] = {name: tomllib.loads(text) for name, text in document["data"].items()}
    return document


def says_the_same(one, other):
    """The two trees, document by document."""
    one = [plain(document) for document in one if document["kind"] != "Namespace"]
    other = [plain(document) for document in other]
    key = lambda document: (document["kind"], document["metadata"]["name"])
    assert sorted(map(key, one)) == sorted(map(key, other))
    for left, right in zip(sorted(one, key=key), sorted(other, key=key)):
        texts = [yaml.safe_dump(document).splitlines() for document in (left, right)]
        assert left == right, f"{key(left)}\n" + "\n".join(difflib.unified_diff(*texts, lineterm=""))


def files_are_those_beside_it():
    found = template(*ALL)
    rules = named(found, "PrometheusRule", RELEASE)["spec"]
    assert rules == yaml.safe_load(pathlib.Path("deploy/prometheus/alerts.yml").read_text())
    dashboard = named(found, "ConfigMap", f"{RELEASE}-dashboard")["data"]["forebay.json"]
    assert yaml.safe_load(dashboard) == yaml.safe_load(pathlib.Path("deploy/grafana/forebay.json").read_text())


def settings_arrive():
    found = template("--values", "tests/deploy/settings.yaml")
    config = tomllib.loads(named(found, "ConfigMap", RELEASE)["data"]["forebay.toml"])
    assert config["server"]["max_connections"] == 8192 and config["server"]["listen"] == ["0.0.0.0:5000"]
    assert config["upstream"]["bandwidth_schedule"] == [{"from": "08:00", "to": "18:00", "limit": "5MB/s"}]
    assert [known["host"] for known in config["registry"]] == ["docker.io", "registry.example"]
    assert config["registry"][0]["tag_rule"] == [{"pattern": "v*", "immutable": True}]
    [claim] = named(found, "StatefulSet", RELEASE)["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "200Gi"
    # Whoever changes a setting restarts the pods.
    checksum = lambda found: named(found, "StatefulSet", RELEASE)["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
    assert checksum(found) != checksum(template())


def wrong_values_are_refused():
    for values, said in REFUSED.items():
        text = run(TOOLS / "helm", "template", RELEASE, CHART, "--set", values, expect=1)
        assert said in text, f"{values}: {text}"


def lints(values):
    run(TOOLS / "helm", "lint", "--strict", CHART, *values)


def tells_what_to_do(values):
    """The notes come with an installation only: a dry one."""
    text = run(TOOLS / "helm", "install", RELEASE, CHART, "--namespace", RELEASE, "--dry-run=client", *values)
    assert "NOTES:" in text and ("config_path" in text or "port-forward" in text), text


def package_holds_the_files():
    with tempfile.TemporaryDirectory() as folder:
        run(TOOLS / "helm", "package", CHART, "--destination", folder)
        [package] = pathlib.Path(folder).iterdir()
        found = documents(run(TOOLS / "helm", "template", RELEASE, package, *ALL))
        assert named(found, "PrometheusRule", RELEASE)["spec"]["groups"]


def rows():
    trees = {name: f"deploy/kubernetes/{name}" for name in ["base", "hosts", "node", "monitoring"]}
    for name, folder in trees.items():
        yield f"kustomize {name}: of Kubernetes", lambda folder=folder: is_of_kubernetes(kustomize(folder))
        if name != "monitoring":
            yield f"kustomize {name}: names lead somewhere", lambda folder=folder: names_lead_somewhere(kustomize(folder))
            yield f"kustomize {name}: careful", lambda folder=folder: pods_are_careful(kustomize(folder))
            yield f"kustomize {name}: works with forebay", lambda folder=folder: works_with_forebay(kustomize(folder))
    for name, values in VARIANTS.items():
        yield f"helm, {name}: lint", lambda values=values: lints(values)
        yield f"helm, {name}: of Kubernetes", lambda values=values: is_of_kubernetes(template(*values))
        yield f"helm, {name}: names lead somewhere", lambda values=values: names_lead_somewhere(template(*values))
        yield f"helm, {name}: careful", lambda values=values: pods_are_careful(template(*values))
        yield f"helm, {name}: works with forebay", lambda values=values: works_with_forebay(template(*values))
        yield f"helm, {name}: notes", lambda values=values: tells_what_to_do(values)
    yield "helm and kustomize: one cache for the cluster", lambda: says_the_same(
        kustomize("deploy/kubernetes/hosts") + kustomize("deploy/kubernetes/monitoring"),
        template("--set", "hosts.enabled=true,serviceMonitor.enabled=true"),
    )
    yield "helm and kustomize: one on each node", lambda: says_the_same(
        kustomize("deploy/kubernetes/node"), template("--set", "mode=node")
    )
    yield "helm: alerts and dashboard are those beside it", files_are_those_beside_it
    if shutil.which("promtool"):
        yield "alerts: promtool's own tests", lambda: run("promtool", "test", "rules", "deploy/prometheus/alerts-test.yml")
    yield "helm: settings arrive", settings_arrive
    yield "helm: wrong values are refused", wrong_values_are_refused
    yield "helm: a package holds all files", package_holds_the_files


def main():
    # The caller's own settings for helm are not ours.
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home, "KUBECONFIG": "/nonexistent"}
        failed = passed = 0
        for text, check in rows():
            try:
                check()
                passed += 1
            except Exception:
                failed += 1
                print(f"failed   {text}")
                print("         | " + traceback.format_exc(limit=-2).strip().replace("\n", "\n         | "))
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
