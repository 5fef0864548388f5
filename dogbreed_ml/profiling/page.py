"""The report's page: its frame, its looks, and what each rule looks for."""

from string import Template
from typing import Final

DESCRIPTIONS: Final = {
    "StepOutlier": "Steps that took much longer than the others.",
    "GPUMemoryIncrease": "GPU memory that grows while the training runs.",
    "LowGPUUtilization": "GPUs that have little to do, or that fluctuate between work and waiting.",
    "BatchSize": "CPU, GPU and GPU memory little used at once: the batch is too small.",
    "CPUBottleneck": "GPUs that wait while the CPU is at its limit.",
    "IOBottleneck": "GPUs that wait while the CPU waits for the disk or the network.",
    "Dataloader": "Too few or too many loader processes, and steps that wait for data.",
    "LoadBalancing": "GPUs or workers that do not share the work evenly.",
    "MaxInitializationTime": "A first step that comes late.",
    "OverallSystemUsage": "Nothing: it sums up how the machine was used.",
    "OverallFrameworkMetrics": "Nothing: it sums up where the training loop's time went.",
    "LossNotDecreasing": "A loss that does not fall.",
    "VanishingGradient": "Gradients so small that a layer learns nothing.",
    "ExplodingTensor": "NaN or infinity in losses, gradients, weights or activations.",
    "Overfit": "A valid loss well above the train loss.",
    "Overtraining": "Epochs that no longer improve the loss.",
    "PoorWeightInitialization": "First weights from which the loss does not fall.",
    "DeadRelu": "Layers whose units are zero for almost every image.",
    "ClassImbalance": "Breeds with far fewer photographs than others, or mistaken far more often.",
    "AllZero": "Gradients or weights that are all zero.",
}

PAGE: Final = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title: profiler report</title>
<style>
$style
main { max-width: 1180px; }
h1 { overflow-wrap: anywhere; }
header .headline { color: var(--ink); font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; margin-top: 12px; font-size: 13.5px; }
.notes { border-color: #d9b64a; }
h3 { margin: 14px 0 4px; font-size: 14.5px; }
p { margin: 4px 0; } small { color: var(--soft); margin-left: 6px; }
.advice { border-left: 3px solid #c8743a; padding: 4px 0 4px 12px; margin: 8px 0; }
.parts { display: flex; gap: 2px; height: 30px; margin-bottom: 12px; }
.parts span { min-width: 3px; overflow: hidden; border-radius: 4px; background: var(--accent); color: #fff; }
.parts span:first-child { background: #c8743a; } .parts span:last-child { background: #5d6b76; }
.parts i { font-style: normal; font-size: 12.5px; line-height: 30px; padding: 0 8px; white-space: nowrap; }
table { font-size: 14px; }
td { white-space: nowrap; } .facts th { font-weight: 500; color: var(--soft); }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
#rules { width: 100%; font-size: 13px; } #rules td.wide { white-space: normal; min-width: 170px; }
#rules th { font-size: 12px; } #rules td, #rules th { padding-right: 10px; }
#rules td.parameters { font-size: 11.5px; padding-right: 0; }
.rule td:nth-child(3) { white-space: normal; min-width: 260px; }
summary { cursor: pointer; color: var(--soft); font-size: 13.5px; margin-top: 6px; }
.badge { font-size: 12px; font-weight: 600; padding: 1px 8px; border-radius: 9px; white-space: nowrap; }
.IssuesFound { background: #fbe6df; color: #9c3a1c; } .NoIssuesFound { background: #e3f2e8; color: #23794b; }
.NotApplicable { background: #eceff1; color: var(--soft); } .Error { background: #f7dada; color: #8f1f1f; }
a { text-decoration: none; } a:hover { text-decoration: underline; }
</style>
<script>$plotly</script></head>
<body><main>
<header><h1>$title: profiler report</h1><p class="headline">$headline</p><p>Recorded in $source. Made $made; times are
UTC.</p><nav>$contents</nav></header>
$notes
$sections
</main></body></html>
""")
