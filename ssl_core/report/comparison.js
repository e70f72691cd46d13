
(() => {
  const data = JSON.parse(document.querySelector("#points").textContent);
  const canvas = document.querySelector("#canvas"), pen = canvas.getContext("2d");
  const [encoder, colour, pictures, told] = ["encoder", "colour", "pictures", "told"]
    .map((id) => document.getElementById(id));
  const sprite = new Image();
  const edge = 30, view = { x: 0, y: 0, zoom: 1 };
  let near = -1, from = null;

  const hues = (names) => {
    const known = [...new Set(names)].sort();
    return new Map(known.map((name, i) => [name, `hsl(${(i * 137.5) % 360} 58% ${i % 2 ? 42 : 55}%)`]));
  };
  const palettes = { labels: hues(data.labels), sources: hues(data.sources) };
  const place = ([x, y]) => [
    view.x + view.zoom * (edge + x * (canvas.width - 2 * edge)),
    view.y + view.zoom * (edge + y * (canvas.height - 2 * edge)),
  ];
  const tile = (i, x, y, side) => {
    const t = data.tile, column = i % data.columns, row = Math.floor(i / data.columns);
    pen.drawImage(sprite, column * t, row * t, t, t, x - side / 2, y - side / 2, side, side);
  };

  function draw() {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const points = data.encoders[encoder.value], names = data[colour.value];
    points.forEach((p, i) => {
      const [x, y] = place(p);
      if (pictures.checked) { tile(i, x, y, 30); return; }
      pen.fillStyle = palettes[colour.value].get(names[i]);
      pen.beginPath();
      pen.arc(x, y, 6, 0, 7);
      pen.fill();
    });
    if (near >= 0) {
      const [x, y] = place(points[near]);
      pen.strokeStyle = palettes[colour.value].get(names[near]);
      pen.lineWidth = 4;
      pen.strokeRect(x - 62, y - 62, 124, 124);
      tile(near, x, y, 120);
    }
    told.textContent = near < 0 ? "" : `${data.labels[near]} (${data.sources[near]})`;
  }

  const at = (e) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(e.clientX - box.left) * scale, (e.clientY - box.top) * scale];
  };
  canvas.addEventListener("pointermove", (e) => {
    const [x, y] = at(e);
    if (from) { view.x += x - from[0]; view.y += y - from[1]; from = [x, y]; draw(); return; }
    let best = 24 ** 2;
    near = -1;
    data.encoders[encoder.value].forEach((p, i) => {
      const [px, py] = place(p), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < best) { best = d; near = i; }
    });
    draw();
  });
  canvas.addEventListener("pointerdown", (e) => { from = at(e); canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { from = null; });
  canvas.addEventListener("pointerleave", () => { near = -1; draw(); });
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    const [x, y] = at(e), factor = Math.exp(-e.deltaY / 500);
    const zoom = Math.min(20, Math.max(1, view.zoom * factor)), f = zoom / view.zoom;
    view.x = zoom === 1 ? 0 : x - f * (x - view.x);
    view.y = zoom === 1 ? 0 : y - f * (y - view.y);
    view.zoom = zoom;
    draw();
  }, { passive: false });
  for (const control of [encoder, colour, pictures]) control.addEventListener("change", draw);
  sprite.addEventListener("load", draw);
  sprite.src = data.sprite;
})();
