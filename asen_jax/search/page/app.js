// The page: a query (an uploaded photo, or the id of one in the gallery), an attribute, and a filter give a ranking.
// What is shown changes only when an answer has arrived, so that an error leaves everything as it was.

const PAGE_SIZE = 24
const element = (id) => document.getElementById(id)
const readable = (name) => name.replaceAll('_', ' ')
let facts = null
let shown = { upload: null, photo: null, attribute: null, filter: {}, count: PAGE_SIZE }
let running = null // the search that has not been answered yet
const uploads = [] // for the Back button; the history holds their numbers

function create(tag, content = {}, ...children) {
  const made = Object.assign(document.createElement(tag), content)
  made.append(...children)
  return made
}

// --- what is asked -------------------------------------------------------------------------------------------------

function condition(filter) {
  const quote = (text) => `'${text.replaceAll("'", "''")}'`
  const parts = Object.entries(filter).map(
    ([column, value]) => `array_has(string_to_array(\`${column}\`, '|'), ${quote(value)})`,
  )
  return parts.join(' and ')
}

function ask(wanted, signal) {
  const fields = { attribute: wanted.attribute, k: wanted.count }
  if (condition(wanted.filter)) fields.where = condition(wanted.filter)
  if (!wanted.upload) return fetch(`photos/${wanted.photo}/similar?${new URLSearchParams(fields)}`, { signal })
  const body = new FormData()
  body.append('photo', wanted.upload)
  for (const [name, value] of Object.entries(fields)) body.append(name, value)
  return fetch('search', { method: 'POST', body, signal })
}

// The JSON of a response; throws an Error with a sentence.
async function read(response) {
  const answer = await response.json().catch(() => ({ detail: `The server answered with status ${response.status}.` }))
  if (response.ok) return answer
  const { detail } = answer
  throw new Error(Array.isArray(detail) ? `${detail[0].loc.at(-1)}: ${detail[0].msg}.` : detail)
}

// Search for `changes` to what is shown; `remember` is how the browser's history takes it: pushState, replaceState, or nothing.
async function search(changes, remember = null) {
  const wanted = { ...shown, count: PAGE_SIZE, ...changes }
  running?.abort()
  const mine = (running = new AbortController())
  const start = performance.now()
  element('results').ariaBusy = 'true'
  try {
    if (wanted.upload?.size > facts.max_bytes) {
      throw new Error(`The photo has more than ${Math.floor(facts.max_bytes / 2 ** 20)} MB; choose a smaller one.`)
    }
    const answer = await read(await ask(wanted, mine.signal))
    if (mine !== running) return false
    const isOther = wanted.upload !== shown.upload || wanted.photo !== shown.photo
    shown = wanted
    if (remember) history[remember]({ upload: uploads.indexOf(shown.upload) }, '', link())
    await transition(() => showAnswer(answer, isOther, performance.now() - start))
    return true
  } catch (error) {
    if (mine !== running) return false // a newer search has begun
    showControls()
    showStatus(error instanceof TypeError ? 'The server does not answer; try again.' : error.message, true)
    return false
  } finally {
    if (mine === running) element('results').ariaBusy = 'false'
  }
}

// --- what is shown -------------------------------------------------------------------------------------------------

function transition(change) {
  return document.startViewTransition ? document.startViewTransition(change).updateCallbackDone : change()
}

function showAnswer(answer, isOther, milliseconds) {
  if (isOther) showQuery()
  showControls()
  drawHeat(answer.heatmap)
  element('results').replaceChildren(...answer.results.map(makeResult))
  for (const label of element('attributes').querySelectorAll('label')) {
    const likely = answer.likely[label.dataset.name]
    label.querySelector('small').textContent = likely ? `${likely.value}, ${Math.round(100 * likely.share)}%` : ''
  }
  element('likely').hidden = !Object.keys(answer.likely).length
  const count = answer.results.length
  element('more').hidden = count < shown.count || count >= facts.max_results
  const what = count === 1 ? '1 photo' : `${count} photos`
  const summary = `${what} most similar in ${readable(shown.attribute)} (${(milliseconds / 1000).toFixed(2)} s)`
  showStatus(count ? summary : 'No photo matches the filter.')
}

function showStatus(text, isError = false) {
  element('status').textContent = text
  element('status').classList.toggle('error', isError)
}

function makeResult(result, index) {
  const { path, score, gallery_id: id, ...columns } = result
  const name = path.split(/[\\/]/).pop()
  const own = columns[shown.attribute] ?? name
  delete columns[shown.attribute]
  const others = Object.values(columns).join(', ')
  const picture = create('img', { src: `photos/${id}/thumbnail`, alt: '', width: 192, height: 192 })
  const caption = create('span', {}, create('strong', { textContent: own }), ` ${score.toFixed(3)}`)
  const rest = create('span', { className: 'rest', textContent: others })
  const button = create('button', { type: 'button', title: path }, picture, caption, rest)
  button.setAttribute('aria-label', `Rank ${index + 1}: ${own}, score ${score.toFixed(3)}. ${others} Search from it.`)
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
  element('show-heat').disabled = !heatmap
  canvas.hidden = !heatmap || !element('show-heat').checked
  if (!heatmap) return
  const values = heatmap.flat()
  const [low, high] = [Math.min(...values), Math.max(...values)]
  canvas.width = heatmap[0].length
  canvas.height = heatmap.length
  const pixels = new ImageData(canvas.width, canvas.height)
  values.forEach((value, place) => {
    const share = (value - low) / Math.max(high - low, 1e-12)
    pixels.data.set([255 * share, 190 * share, 40 * share, 115 - 35 * share], 4 * place) // from dark to a warm light
  })
  canvas.getContext('2d').putImageData(pixels, 0, 0)
}

function showQuery() {
  const picture = element('picture')
  if (picture.src.startsWith('blob:')) URL.revokeObjectURL(picture.src)
  picture.src = shown.upload ? URL.createObjectURL(shown.upload) : `photos/${shown.photo}/thumbnail`
  picture.alt = shown.upload ? 'the photo that you chose' : 'the photo of the gallery that you search from'
  element('share').hidden = Boolean(shown.upload)
  element('not-kept').hidden = !shown.upload
}

function showControls() {
  for (const input of element('attributes').querySelectorAll('input')) input.checked = input.value === shown.attribute
  for (const select of element('columns').querySelectorAll('select')) select.value = shown.filter[select.name] ?? ''
  const count = Object.keys(shown.filter).length
  element('filter-count').textContent = count ? `(${count})` : ''
}

// --- what the visitor does -----------------------------------------------------------------------------------------

async function startFrom(id) {
  if (!(await search({ photo: id, upload: null }, 'pushState'))) return
  element('found-title').focus({ preventScroll: true }) // the button that had the focus is gone
  element('query').scrollIntoView({ block: 'nearest' })
}

function startWith(file) {
  if (!file) return
  uploads.push(file)
  search({ photo: null, upload: file }, 'pushState')
}

// A link holds a photo of the gallery, the attribute, and the filter; an uploaded photo is kept nowhere.
function link() {
  const fields = new URLSearchParams({ attribute: shown.attribute })
  if (shown.photo) fields.set('photo', shown.photo)
  for (const [column, value] of Object.entries(shown.filter)) fields.set(`filter.${column}`, value)
  return `?${fields}`
}

function readLink() {
  const fields = new URLSearchParams(location.search)
  const attribute = [fields.get('attribute'), facts.attributes[0]].find((name) => facts.attributes.includes(name))
  const upload = uploads[history.state?.upload] ?? null
  const photo = upload ? null : (fields.get('photo') ?? facts.examples[0])
  const filter = {}
  for (const [name, value] of fields) {
    const column = name.replace(/^filter\./, '')
    if (column !== name && Object.hasOwn(facts.columns, column)) filter[column] = value
  }
  if (upload || /^[0-9a-f]{16}$/.test(photo)) search({ attribute, upload, photo, filter })
  else showStatus(facts.photos ? 'The link does not name a photo; choose one.' : 'The gallery is empty.', true)
}

async function copyLink() {
  const address = new URL(link(), location).href
  try {
    await navigator.clipboard.writeText(address)
    showStatus('The link was copied.')
  } catch {
    showStatus(address) // browsers let only some pages write to the clipboard
  }
}

function listen() {
  element('file').addEventListener('change', ({ target }) => {
    startWith(target.files[0])
    target.value = '' // so that the same file can be chosen again
  })
  for (const kind of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault()
      document.body.classList.toggle('dragging', kind === 'dragover')
      if (kind === 'drop') startWith(event.dataTransfer.files[0])
    })
  }
  element('attributes').addEventListener('change', ({ target }) => search({ attribute: target.value }, 'replaceState'))
  element('columns').addEventListener('change', ({ target }) => {
    const { [target.name]: _, ...others } = shown.filter
    search({ filter: target.value ? { ...others, [target.name]: target.value } : others }, 'replaceState')
  })
  element('clear').addEventListener('click', () => search({ filter: {} }, 'replaceState'))
  element('more').addEventListener('click', async () => {
    const before = shown.count
    await search({ count: Math.min(before + PAGE_SIZE, facts.max_results) })
    element('results').querySelectorAll('button')[before]?.focus()
  })
  element('show-heat').addEventListener('change', ({ target }) => {
    element('heat').hidden = !target.checked
  })
  element('share').addEventListener('click', copyLink)
  addEventListener('popstate', readLink)
}

async function start() {
  facts = await read(await fetch('facts'))
  element('count').textContent = facts.photos === 1 ? '1 photo.' : `${facts.photos.toLocaleString('en')} photos.`
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
  element('start').hidden = !facts.photos
  element('examples').replaceChildren(...facts.examples.map(makeExample))
  listen()
  readLink()
}

start().catch((error) => {
  showStatus(error instanceof TypeError ? 'The server does not answer; reload the page.' : error.message, true)
})
