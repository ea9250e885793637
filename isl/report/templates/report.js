'use strict';

// A picture's contents are in the page once: its other places take them from there when first seen.
function fill(root) {
  for (const image of root.querySelectorAll('img[data-from]')) {
    image.src = document.getElementById(image.dataset.from).src;
    image.removeAttribute('data-from');
  }
}
document.querySelectorAll('details[open]').forEach(fill);
document.addEventListener('toggle', event => event.target.open && fill(event.target), true);

// Links to fields of view unfold them.
function reveal(hash) {
  const field = document.getElementById(hash.slice(1));
  if (field instanceof HTMLDetailsElement) field.open = true;
}
document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#"]');
  if (link) reveal(link.hash);
});
window.addEventListener('hashchange', () => reveal(location.hash));
reveal(location.hash);
for (const [id, open] of [['unfold', true], ['fold', false]]) {
  document.getElementById(id)?.addEventListener('click', () => {
    for (const field of document.querySelectorAll('.field')) field.open = open;
  });
}

// Tables are sorted by their heads; what has no value comes last.
function value(row, column) {
  const cell = row.cells[column];
  if (!cell.classList.contains('number')) return cell.textContent;
  return {inf: Infinity, '-inf': -Infinity}[cell.dataset.value] ?? Number(cell.dataset.value);
}
function compare(a, b) {
  if (typeof a === 'string') return a.localeCompare(b, undefined, {numeric: true});
  return a - b;
}
function sort(head) {
  const column = head.cellIndex;
  const body = head.closest('table').tBodies[0];
  const descending = head.getAttribute('aria-sort') === 'ascending';
  for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  const rows = [...body.rows].map(row => ({row, value: value(row, column)}));
  const known = rows.filter(({value}) => !Number.isNaN(value));
  known.sort((a, b) => compare(a.value, b.value) * (descending ? -1 : 1));
  const unknown = rows.filter(({value}) => Number.isNaN(value));
  body.append(...known.concat(unknown).map(({row}) => row));
}
for (const button of document.querySelectorAll('thead button')) {
  button.addEventListener('click', () => sort(button.closest('th')));
}

// Prediction over truth, up to where the slider is.
document.addEventListener('input', event => {
  event.target.closest('.comparison')?.style.setProperty('--split', `${event.target.value}%`);
});

// The enlarged picture; those of the same label are one key or click away, at the same place.
const dialog = document.querySelector('dialog');
const stage = dialog.querySelector('.stage');
const shown = stage.querySelector('img');
const tabs = dialog.querySelector('.tabs');
const view = {scale: 1, x: 0, y: 0};

function draw() {
  shown.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  shown.classList.toggle('large', view.scale >= 3);
  dialog.querySelector('output').value = `${Math.round(100 * view.scale)} %`;
}
function fit() {
  const {clientWidth: width, clientHeight: height} = stage;
  view.scale = Math.min(width / shown.naturalWidth, height / shown.naturalHeight);
  view.x = (width - view.scale * shown.naturalWidth) / 2;
  view.y = (height - view.scale * shown.naturalHeight) / 2;
  draw();
}
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(view.scale * factor, 0.05), 40);
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  draw();
}
async function show(button, sameView) {
  const {naturalWidth: width, naturalHeight: height} = shown;
  const image = button.querySelector('img');
  shown.src = image.src;
  shown.alt = image.alt;
  const {title} = button.closest('.label').dataset;
  document.getElementById('shown').textContent = `${button.dataset.name} · ${title}`;
  [...tabs.children].forEach(tab => tab.setAttribute('aria-pressed', String(tab.button === button)));
  await shown.decode().catch(() => {});
  if (!sameView || shown.naturalWidth !== width || shown.naturalHeight !== height) fit();
}
function enlarge(button) {
  tabs.replaceChildren(...[...button.closest('.label').querySelectorAll('.enlarge')].map(other => {
    const tab = document.createElement('button');
    tab.type = 'button';
    tab.textContent = other.dataset.name;
    tab.button = other;
    tab.addEventListener('click', () => show(other, true));
    return tab;
  }));
  dialog.showModal();
  show(button, false);
}
function step(by) {
  const all = [...tabs.children];
  const now = all.findIndex(tab => tab.getAttribute('aria-pressed') === 'true');
  show(all[(now + by + all.length) % all.length].button, true);
}
function command(name) {
  if (name === 'close') dialog.close();
  else if (name === 'fit') fit();
  else zoom(Number(name));
}
for (const button of document.querySelectorAll('.enlarge')) {
  button.addEventListener('click', () => enlarge(button));
}
for (const button of dialog.querySelectorAll('[data-zoom]')) {
  button.addEventListener('click', () => command(button.dataset.zoom));
}
dialog.addEventListener('keydown', event => {
  const keys = {
    '+': () => zoom(1.25), '=': () => zoom(1.25), '-': () => zoom(0.8), '0': fit,
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
stage.addEventListener('wheel', event => {
  event.preventDefault();
  const {left, top} = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 500), event.clientX - left, event.clientY - top);
}, {passive: false});
stage.addEventListener('pointerdown', event => stage.setPointerCapture(event.pointerId));
stage.addEventListener('pointermove', event => {
  if (!stage.hasPointerCapture(event.pointerId)) return;
  view.x += event.movementX;
  view.y += event.movementY;
  draw();
});
window.addEventListener('resize', () => dialog.open && fit());
