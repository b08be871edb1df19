"""What the resize benchmark times: each cell is a script of its own, for a fresh process.

A cell gets the folder of JPEGs, the clean dataset, a folder for its output, the number of images and the size; it
prints one line of JSON: `rate` in images/s with everything warm, `start_up` in seconds before that, `cpu`, the CPU
seconds of all its processes for 1,000 images, and `error`, the mean absolute difference of its pixels from plain
Pillow's (of 255) on a sample.
"""

from __future__ import annotations

COMMON = """
import io, json, os, resource, sys, time
began = time.perf_counter()
from pathlib import Path
import numpy as np
folder, clean_uri, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
number, size, quality = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
short, cores = round(size * 256 / 224), len(os.sched_getaffinity(0))
files = sorted(str(p) for p in Path(folder).rglob("*.jpg"))
def pillow(data):
    from PIL import Image
    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = image.size
    s, l = min(w, h), max(w, h)
    w, h = (short, int(short * l / s)) if w <= h else (int(short * l / s), short)
    left, top = round((w - size) / 2.0), round((h - size) / 2.0)
    return np.asarray(image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size)))
def error_of(function):
    sample = [Path(f).read_bytes() for f in files[:: max(1, len(files) // 48)]]
    return float(np.mean([np.abs(function(d).astype(int) - pillow(d)).mean() for d in sample]))
def family():
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    found, todo = {os.getpid()}, [os.getpid()]
    while todo:
        todo = [pid for pid, parent in parents.items() if parent in todo and pid not in found]
        found.update(todo)
    return found
def cpu_seconds():  # of this process and its descendants, those that have ended included
    ticks = 0
    for pid in family():
        try:
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            pass
    return ticks / os.sysconf("SC_CLK_TCK")
def start():
    global cpu_before
    cpu_before = cpu_seconds()
    return time.perf_counter()
def report(started, function=None):
    took, cpu = time.perf_counter() - started, cpu_seconds() - cpu_before
    error = error_of(function) if function else None
    cell = {"rate": number / took, "start_up": started - began, "error": error, "cpu": 1000 * cpu / number}
    print(json.dumps(cell))
def local_ray(**options):
    import ray
    ray.init(address="local", num_cpus=cores, log_to_driver=False, include_dashboard=False, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
"""

BARE = """
import torch
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
torch.set_num_threads(1)
geometry = Geometry(size, quality=quality)
blobs = [Path(f).read_bytes() for f in files[:1000]]
for blob in blobs[:20]: decode_and_resize(blob, geometry)
started, number = start(), len(blobs)
for blob in blobs: decode_and_resize(blob, geometry)
report(started, lambda data: decode_and_resize(data, geometry))
"""

OURS = """
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.parts import PartFolder
from imagemill.components.engine.map_parts import map_parts
from imagemill.components.engine.ray_session import open_ray_session
from imagemill.components.engine.tasks import run_tasks
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
from imagemill.components.resize.target import make_split_rule
from imagemill.components.resize.tensor_part import ResizeTask, TensorSpec, write_tensors
from imagemill.components.step.progress import Progress
from contextlib import nullcontext
clean, spec = read_dataset(clean_uri), TensorSpec(Geometry(size, quality=quality))
clean_folder = PartFolder(clean_uri.rpartition("/clean/")[0] + "/parts/clean")
def run(out, slots, parts):
    tasks = [ResizeTask(part.key, part, make_split_rule(clean)) for part in parts]
    folder, progress = PartFolder(str(out)), Progress("resize", total=sum(task.rows for task in tasks))
    map_parts(folder, tasks, write_tensors, (clean_folder, spec), lambda _: nullcontext(slots), progress)
    return sum(task.rows for task in tasks)
def imports(job):
    import cv2, torch
    from imagemill.components.resize import tensor_part
    time.sleep(1)
    return {}
class Warm:
    rows = 0
    def __init__(self, key): self.key = key
def warm(slots):
    list(run_tasks([Warm(str(n)) for n in range(2 * cores)], imports, (), slots))
"""

IMAGEMILL = (
    OURS
    + """
with open_ray_session("resize", "", 0) as slots:
    warm(slots)
    run(out / "warm", slots, clean.manifest.parts[:cores])
    started = start()
    number = run(out / "counts", slots, clean.manifest.parts)
    report(started, lambda data: decode_and_resize(data, spec.geometry))
"""
)

USUAL = """
import torch
from torchvision.transforms import v2
transform = v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(size)])
def one(image):
    return transform(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
def resize(batch):
    return {"image": np.stack([one(image) for image in batch["image"]])}
def run(paths, out):
    import ray
    ray.data.read_images(paths, mode="RGB").map_batches(resize, batch_size=128).write_parquet(str(out))
ray = local_ray()
run(files[: 64 * cores], out / "warm")
started = start()
run(folder, out / "counts")
report(started, lambda d: one(np.array(__import__("PIL.Image").Image.open(io.BytesIO(d)).convert("RGB"))))
"""

READ_IMAGES = """
def run(paths, out):
    import ray
    ray.data.read_images(paths, mode="RGB", size=(size, size)).write_parquet(str(out))
ray = local_ray()
run(files[: 64 * cores], out / "warm")
started = start()
run(folder, out / "counts")
report(started)
"""

IMG2DATASET = """
import multiprocessing, cv2
from img2dataset.resizer import Resizer
import pyarrow as pa, pyarrow.parquet as pq
resizer = Resizer(
    image_size=short, resize_mode="center_crop", min_image_size=0, max_aspect_ratio=float("inf"),
    resize_only_if_bigger=False, encode_quality=95, encode_format="jpg",
)
cv2.setNumThreads(1)
def work(paths):
    made = []
    for path in paths:
        image, *_, problem = resizer(io.BytesIO(Path(path).read_bytes()))
        assert problem is None, problem
        made.append(image)
    pq.write_table(pa.table({"image": made}), out / f"{Path(paths[0]).stem}.parquet")
if __name__ == "__main__":
    out.mkdir(parents=True)
    with multiprocessing.get_context("fork").Pool(cores) as pool:
        pool.map(work, [files[n : n + 1] for n in range(cores)])
        started = start()
        pool.map(work, [files[n : n + 256] for n in range(0, len(files), 256)], chunksize=1)
        report(started)
"""

LITDATA = """
import torch
from PIL import Image
from torchvision.transforms import v2
from litdata import optimize
transform = v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(size)])
def one(path):
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return {"image": transform(image).contiguous(), "label": 0}
if __name__ == "__main__":
    torch.set_num_threads(1)
    started = start()
    optimize(fn=one, inputs=files, output_dir=str(out), num_workers=cores, chunk_bytes="64MB")
    report(started)
"""

CELLS = {
    "bare": BARE, "imagemill": IMAGEMILL, "usual": USUAL, "read_images": READ_IMAGES, "img2dataset": IMG2DATASET,
    "litdata": LITDATA,
}  # fmt: skip
NEEDS = {"usual": "ray.data", "read_images": "ray.data", "img2dataset": "img2dataset", "litdata": "litdata"}
"""What a cell's Python must be able to import."""

MEMORY = (
    OURS
    + """
import threading
def megabytes():
    total = 0
    for pid in family():
        try:
            total += int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\\nPss:")[2].split()[0])
        except OSError:
            pass
    return total / 1000
with open_ray_session("resize", "", 0) as slots:
    warm(slots)
    time.sleep(2)
    idle = megabytes()
from imagemill.components.resize import STEP
from imagemill.components.resize.config import ResizeConfig
workspace = clean_uri.rpartition("/clean/")[0]
config = ResizeConfig.from_values({"clean": clean_uri, "workspace": workspace, "image_size": size, "quality": quality})
peak, stop = [0.0], threading.Event()
def watch():
    while not stop.wait(0.2):
        peak[0] = max(peak[0], megabytes())
thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
code = STEP.execute(config).exit_code
took = time.perf_counter() - began
stop.set(); thread.join()
assert code == 0
print(json.dumps({"rows": number, "idle": idle, "peak": peak[0], "above": peak[0] - idle, "seconds": took}))
"""
)
