"""Takes helm and kubectl out of the package that carries them: unpack.py FOLDER-OF-WHEELS TARGET"""

import io
import pathlib
import sys
import tarfile
import zipfile

wheels, target = (pathlib.Path(argument) for argument in sys.argv[1:])
[wheel] = wheels.glob("aws_cdk_*.whl")
with zipfile.ZipFile(wheel) as package:
    [name] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
    archive = tarfile.open(fileobj=io.BytesIO(package.read(name)))
with zipfile.ZipFile(archive.extractfile("package/lib/layer.zip")) as layer:
    for tool in ["helm", "kubectl"]:
        path = target / tool
        path.write_bytes(layer.read(f"{tool}/{tool}"))
        path.chmod(0o755)
