// The page: a query (an uploaded photo, or the id of one in the gallery), an attribute, and a filter give a ranking.

const element = (id) => document.getElementById(id)
const readable = (name) => name.replaceAll('_', ' ')
const PAGE_SIZE = 24
const state = { upload: null, photo: null, attribute: null, filter: {}, count: PAGE_SIZE }
let facts = null
let running = null // the search that has not been answered yet

function create(tag, content = {}, ...children) {
  const made = Object.assign(document.createElement(tag), content)
  made.append(...children)
  return made
}

// --- what is asked -------------------------------------------------------------------------------------------------

function condition() {
  const quote = (text) => `'${text.replaceAll("'", "''")}'`
  const parts = Object.entries(state.filter).map(
    ([column, value]) => `array_has(string_to_array(\`${column}\`, '|'), ${quote(value)})`,
  )
  return parts.join(' and ')
}

async function ask(signal) {
  const fields = { attribute: state.attribute, k: state.count }
  if (condition()) fields.where = condition()
  if (!state.upload) return fetch(`photos/${state.photo}/similar?${new URLSearchParams(fields)}`, { signal })
  const body = new FormData()
  body.append('photo', state.upload)
  for (const [name, value] of Object.entries(fields)) body.append(name, value)
  return fetch('search', { method: 'POST', body, signal })
}

async function search() {
  running?.abort()
  const mine = (running = new AbortController())
  const start = performance.now()
  try {
    const response = await ask(mine.signal)
    const answer = await response.json()
    if (mine !== running) return
    if (!response.ok) throw new Error(sentence(answer.detail))
    await transition(() => showAnswer(answer, performance.now() - start))
  } catch (error) {
    if (mine !== running) return // a newer search has begun
    showStatus(error instanceof TypeError ? 'The server does not answer; try again.' : error.message, true)
  }
}

const sentence = (detail) => (Array.isArray(detail) ? detail.map((each) => each.msg).join('; ') : detail)

// --- what is shown -------------------------------------------------------------------------------------------------

function transition(change) {
  return document.startViewTransition ? document.startViewTransition(change).updateCallbackDone : change()
}

function showAnswer(answer, milliseconds) {
  element('results').replaceChildren(...answer.results.map(makeResult))
  drawHeat(answer.heatmap)
  for (const label of element('attributes').querySelectorAll('label')) {
    const likely = answer.likely[label.dataset.name]
    label.querySelector('small').textContent = likely ? `${likely.value}, ${Math.round(100 * likely.share)}%` : ''
  }
  const count = answer.results.length
  element('more').hidden = count < state.count || count >= facts.most
  const what = count === 1 ? '1 photo' : `${count} photos`
  const told = `${what} by ${readable(state.attribute)}, in ${(milliseconds / 1000).toFixed(2)} s`
  showStatus(count ? told : 'No photo passes the filter.')
}

function showStatus(text, isError = false) {
  element('status').textContent = text
  element('status').classList.toggle('error', isError)
}

function makeResult(result, index) {
  const { path, score, gallery_id: id, ...columns } = result
  const own = columns[state.attribute]
  const others = Object.entries(columns).filter(([name]) => name !== state.attribute)
  const rest = others.map(([name, value]) => `${readable(name)}: ${value}`).join('\n')
  const name = path.split(/[\\/]/).pop()
  const picture = create('img', { src: `photos/${id}/thumbnail`, alt: '', width: 192, height: 192 })
  const caption = create('span', {}, create('strong', { textContent: own ?? name }), ` ${score.toFixed(3)}`)
  const button = create('button', { type: 'button', title: `${path}\n${rest}` }, picture, caption)
  button.setAttribute('aria-label', `Rank ${index + 1}: ${own ?? name}, score ${score.toFixed(3)}. Search from it.`)
  button.addEventListener('click', () => startFrom(id))
  const item = create('li', {}, button)
  item.style.viewTransitionName = `photo-${id}`
  return item
}

function makeExample(id, index) {
  const picture = create('img', { src: `photos/${id}/thumbnail`, alt: '', width: 96, height: 96 })
  const button = create('button', { type: 'button' }, picture)
  button.setAttribute('aria-label', `Search from example ${index + 1}`)
  button.addEventListener('click', () => startFrom(id))
  return create('li', {}, button)
}

function drawHeat(heatmap) {
  const canvas = element('heat')
  canvas.hidden = !heatmap || !element('show-heat').checked
  canvas.dataset.known = heatmap ? 'yes' : ''
  if (!heatmap) return
  const values = heatmap.flat()
  const [low, high] = [Math.min(...values), Math.max(...values)]
  canvas.width = heatmap[0].length
  canvas.height = heatmap.length
  const pixels = new ImageData(canvas.width, canvas.height)
  values.forEach((value, place) => {
    const share = (value - low) / Math.max(high - low, 1e-12)
    pixels.data.set([255 * share, 190 * share, 40 * share, 135 - 65 * share], 4 * place) // from dark to a warm light
  })
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}

function showQuery() {
  const picture = element('picture')
  if (picture.src.startsWith('blob:')) URL.revokeObjectURL(picture.src)
  picture.src = state.upload ? URL.createObjectURL(state.upload) : `photos/${state.photo}/thumbnail`
  picture.alt = state.upload ? 'the photo that you chose' : 'the photo of the gallery that you search from'
  element('share').hidden = Boolean(state.upload)
  element('not-kept').hidden = !state.upload
  drawHeat(null)
}

function showControls() {
  for (const input of element('attributes').querySelectorAll('input')) input.checked = input.value === state.attribute
  for (const select of element('columns').querySelectorAll('select')) select.value = state.filter[select.name] ?? ''
  const count = Object.keys(state.filter).length
  element('filter-count').textContent = count ? `(${count})` : ''
}

// --- what the visitor does -----------------------------------------------------------------------------------------

function changed() {
  state.count = PAGE_SIZE
  history.pushState(null, '', link())
  showControls()
  search()
}

function startFrom(id) {
  Object.assign(state, { photo: id, upload: null })
  showQuery()
  changed()
  element('query').scrollIntoView({ block: 'nearest' })
}

function startWith(file) {
  Object.assign(state, { photo: null, upload: file })
  showQuery()
  changed()
}

// A link holds a photo of the gallery, the attribute, and the filter; an uploaded photo is kept nowhere.
function link() {
  const fields = new URLSearchParams({ attribute: state.attribute })
  if (state.photo) fields.set('photo', state.photo)
  for (const [column, value] of Object.entries(state.filter)) fields.set(`filter.${column}`, value)
  return `?${fields}`
}

function readLink() {
  const fields = new URLSearchParams(location.search)
  const known = (name) => facts.attributes.includes(name)
  state.attribute = [fields.get('attribute'), facts.attributes[0]].find(known)
  state.photo = fields.get('photo') ?? facts.examples[0]
  state.upload = null
  state.filter = {}
  for (const [name, value] of fields) {
    const column = name.replace(/^filter\./, '')
    if (column !== name && column in facts.columns) state.filter[column] = value
  }
  showQuery()
  showControls()
  search()
}

function listen() {
  element('file').addEventListener('change', (event) => {
    if (event.target.files.length) startWith(event.target.files[0])
    event.target.value = '' // so that the same file can be chosen again
  })
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault()
      document.body.classList.toggle('dragging', kind === 'dragover')
      if (kind === 'drop' && event.dataTransfer.files.length) startWith(event.dataTransfer.files[0])
    })
  }
  element('attributes').addEventListener('change', (event) => {
    state.attribute = event.target.value
    changed()
  })
  element('columns').addEventListener('change', ({ target }) => {
    if (target.value) state.filter[target.name] = target.value
    else delete state.filter[target.name]
    changed()
  })
  element('clear').addEventListener('click', () => {
    state.filter = {}
    changed()
  })
  element('more').addEventListener('click', () => {
    state.count = Math.min(state.count + PAGE_SIZE, facts.most)
    search()
  })
  element('show-heat').addEventListener('change', ({ target }) => {
    element('heat').hidden = !target.checked || !element('heat').dataset.known
  })
  element('share').addEventListener('click', async () => {
    await navigator.clipboard.writeText(new URL(link(), location).href)
    showStatus('The link was copied.')
  })
  addEventListener('popstate', readLink)
}

async function start() {
  facts = await (await fetch('facts')).json()
  element('count').textContent = `${facts.photos.toLocaleString('en')} photos.`
  element('photo').classList.add(facts.fit)
  element('look').hidden = !facts.has_heatmaps
  for (const name of facts.attributes) {
    const input = create('input', { type: 'radio', name: 'attribute', value: name })
    const label = create('label', {}, input, readable(name), create('small'))
    label.dataset.name = name
    element('attributes').append(label)
  }
  for (const [column, values] of Object.entries(facts.columns)) {
    const options = values.map((value) => create('option', { value, textContent: value }))
    const select = create('select', { name: column }, create('option', { value: '', textContent: 'any' }), ...options)
    element('columns').append(create('label', {}, readable(column), select))
  }
  element('filter').hidden = !Object.keys(facts.columns).length
  element('examples').replaceChildren(...facts.examples.map(makeExample))
  listen()
  readLink()
}

start().catch(() => showStatus('The server does not answer; reload the page.', true))
