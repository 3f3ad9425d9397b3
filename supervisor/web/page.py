"""The dashboard's one page: tables that ask for /status.json every second. Workers' text is never taken as HTML."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>smartipc</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --ok: #188a42; --warn: #b7791f; --bad: #c53030; --idle: #777; }
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
  h1 { font-size: 1.25rem; margin: 0 0 .25rem; } p { margin: 0 0 1.25rem; color: var(--idle); }
  table { border-collapse: collapse; width: 100%; margin-bottom: 2rem; font-variant-numeric: tabular-nums; }
  th { text-align: left; font-weight: 600; color: var(--idle); font-size: .8rem; }
  th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
  td.n { text-align: right; } .dot::before { content: "●"; margin-right: .4em; }
  .ok::before, .ok { color: var(--ok); } .warn { color: var(--warn); } .bad { color: var(--bad); } .idle { color: var(--idle); }
  #gone { display: none; color: var(--bad); font-weight: 600; }
</style>
<h1 id="app">smartipc</h1>
<p id="about"></p>
<p id="gone" role="alert">The supervisor does not answer.</p>
<table aria-label="Instances"><thead><tr><th>Instance<th>State<th>Pid<th>Uptime<th>Restarts<th>Memory<th>CPU<th>Says
<th>Last exit</thead><tbody id="rows"></tbody></table>
<table aria-label="Events"><thead><tr><th>#<th>At<th>Instance<th>Change<th>Cause</thead><tbody id="events"></tbody></table>
<script>
  const kind = s => ({ready: "ok", running: "ok", failed: "bad", degraded: "warn", backoff: "warn"})[s] || "idle";
  const bytes = n => n == null ? "" : n < 1048576 ? (n / 1024).toFixed(0) + " KiB" : (n / 1048576).toFixed(1) + " MiB";
  const span = s => s == null ? "" : s < 60 ? s.toFixed(0) + " s" : s < 3600 ? (s / 60).toFixed(0) + " min"
    : s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " d";
  const cell = (row, text, name) => { const td = row.insertCell(); td.textContent = text ?? ""; if (name) td.className = name; };
  const fill = (id, items, each) => {
    const body = document.createElement("tbody"); body.id = id;
    for (const item of items) each(body.insertRow(), item);
    document.getElementById(id).replaceWith(body);
  };
  const says = w => [w.status, w.progress && w.progress.done + (w.progress.total ? " of " + w.progress.total : ""),
    w.waiting_for.length && "waits for " + w.waiting_for.join(", "),
    w.next_restart_in != null && "next try in " + w.next_restart_in.toFixed(1) + " s"].filter(Boolean).join(" · ");
  async function look() {
    try {
      const {status, events} = await (await fetch("status.json")).json();
      document.title = document.getElementById("app").textContent = status.app;
      const ready = status.workers.filter(w => w.ready).length;
      document.getElementById("about").textContent =
        `${status.state}, ${ready} of ${status.workers.length} ready, process ${status.pid}, ${status.config}`;
      fill("rows", status.workers, (row, w) => {
        cell(row, w.instance); cell(row, w.state, "dot " + kind(w.state)); cell(row, w.pid, "n"); cell(row, span(w.uptime), "n");
        cell(row, w.restarts, "n"); cell(row, bytes(w.memory), "n"); cell(row, w.cpu == null ? "" : w.cpu.toFixed(0) + " %", "n");
        cell(row, says(w)); cell(row, w.last_exit && (w.last_exit.reason || w.last_exit.signal || w.last_exit.code));
      });
      fill("events", events.reverse(), (row, e) => {
        cell(row, e.seq, "n"); cell(row, e.at.slice(11, 19)); cell(row, e.instance);
        cell(row, e.to ? `${e.from} → ${e.to}` : e.event, kind(e.to)); cell(row, e.cause);
      });
      document.getElementById("gone").style.display = "none";
    } catch { document.getElementById("gone").style.display = "block"; }
  }
  look(); setInterval(look, 1000);
</script>
</html>
"""
