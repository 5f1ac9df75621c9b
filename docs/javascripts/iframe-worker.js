// Browsers start no Worker for a page that was opened from the disk. The search's worker then runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inner = (this.inner = frame.contentWindow)
      // What the worker posts goes to this page; what it loads, it loads by script elements.
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const load = source =>
        new Promise((resolve, reject) => {
          const script = inner.document.createElement("script")
          Object.assign(script, { src: source, onload: resolve, onerror: reject })
          inner.document.head.append(script)
        })
      inner.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      this.ready = load(url)
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
