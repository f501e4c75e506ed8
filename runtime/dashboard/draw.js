"use strict";
// Draws the score trace and the histogram. Shapes differ as well as colours.

const Draw = (() => {
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    pen.font = "12px " + style("--font");
    return [pen, box.width, box.height];
  }

  function figure(value) {
    return value === null || !Number.isFinite(value) ? "–" : String(Number(value.toPrecision(4)));
  }

  function line(pen, y, left, right, colour, dash) {
    pen.strokeStyle = colour; pen.lineWidth = 2; pen.setLineDash(dash);
    pen.beginPath(); pen.moveTo(left, y); pen.lineTo(right, y); pen.stroke(); pen.setLineDash([]);
  }

  // points: [number, source, score or null, threshold, code]; tried: a threshold that is only looked at, or null;
  // routed: each point has the threshold of its own category, so that a line would join what does not belong together.
  function trace(canvas, points, room, tried, routed) {
    const [pen, width, height] = prepare(canvas);
    const left = 46, right = width - 8, top = 8, bottom = height - 8;
    const scores = points.map(point => point[2]).filter(score => score !== null);
    const limits = points.map(point => point[3]).filter(Number.isFinite);
    const now = limits.length ? limits[limits.length - 1] : null;
    const all = [...scores, ...limits, ...(tried === null ? [] : [tried])];
    if (!all.length) return;
    let low = Math.min(...all), high = Math.max(...all);
    if (low >= 0 && low < high / 2) low = 0;
    const margin = (high - low || Math.abs(high) || 1) * 0.08;
    high += margin; if (low !== 0) low -= margin;
    const y = value => bottom - (value - low) / (high - low) * (bottom - top);
    const x = index => right - (points.length - 1 - index) * (right - left) / (room - 1);
    pen.fillStyle = style("--soft"); pen.textAlign = "right"; pen.textBaseline = "middle";
    for (const share of [0, 0.5, 1]) {
      const value = low + share * (high - low);
      pen.fillText(figure(value), left - 8, Math.min(bottom - 6, Math.max(top + 6, y(value))));
      pen.strokeStyle = style("--line"); pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(right, y(value)); pen.stroke();
    }
    pen.strokeStyle = style("--rule"); pen.lineWidth = 2; pen.beginPath();
    points.forEach((point, index) => {
      if (!Number.isFinite(point[3])) return;
      if (routed) pen.moveTo(x(index) - 4, y(point[3]));
      else if (index === 0) pen.moveTo(left, y(point[3]));
      pen.lineTo(x(index) + (routed ? 4 : 0), y(point[3]));
    });
    pen.stroke();
    if (tried !== null && tried !== now) line(pen, y(tried), left, right, style("--accent"), [6, 5]);
    points.forEach((point, index) => {
      const [, , score, , code] = point, across = x(index);
      if (code === 2) {
        pen.fillStyle = style("--not"); pen.strokeStyle = "#7a5600"; pen.lineWidth = 1;
        const up = score === null ? bottom - 5 : y(score);
        pen.fillRect(across - 4, up - 4, 8, 8); pen.strokeRect(across - 4, up - 4, 8, 8);
      } else if (code === 1) {
        const up = y(score); pen.fillStyle = style("--anomaly");
        pen.beginPath(); pen.moveTo(across, up - 6); pen.lineTo(across + 5.5, up + 4); pen.lineTo(across - 5.5, up + 4); pen.fill();
      } else {
        pen.fillStyle = style("--ok"); pen.beginPath(); pen.arc(across, y(score), 2.5, 0, 7); pen.fill();
      }
    });
  }

  function histogram(canvas, data, now, tried) {
    const [pen, width, height] = prepare(canvas);
    const {low, high, counts} = data, most = Math.max(1, ...counts), step = width / counts.length;
    const limit = tried === null ? now : tried;
    counts.forEach((count, index) => {
      const middle = low + (index + 0.5) * (high - low) / counts.length;
      // The square root keeps the few parts beyond the threshold visible beside the many before it.
      const tall = count ? Math.max(2, Math.sqrt(count / most) * (height - 8)) : 0;
      pen.fillStyle = style(middle > limit ? "--anomaly" : "--ok");
      pen.fillRect(index * step + 1, height - tall, step - 2, tall);
    });
    const mark = (value, colour, dash) => {
      const across = (value - low) / (high - low) * width;
      pen.strokeStyle = colour; pen.lineWidth = 2; pen.setLineDash(dash);
      pen.beginPath(); pen.moveTo(across, 0); pen.lineTo(across, height); pen.stroke(); pen.setLineDash([]);
    };
    mark(now, style("--rule"), []);
    if (tried !== null && tried !== now) mark(tried, style("--accent"), [6, 5]);
  }

  return {trace, histogram, figure};
})();
