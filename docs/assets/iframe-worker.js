// Browsers start no worker for a page that was opened as a file. There, the search runs in a frame that nobody sees.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(address) {
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      const script = inside.document.createElement("script")
      const loaded = new Promise((resolve, reject) => {
        script.onload = resolve
        script.onerror = reject
      })
      // As between a page and its worker: what is sent is a copy, and arrives when the sender is done.
      const send = (data, receive) => {
        const copy = structuredClone(data)
        loaded.then(() => receive({ data: copy }))
      }
      this.postMessage = (data) => send(data, (event) => inside.onmessage(event))
      inside.postMessage = (data) => send(data, (event) => this.onmessage?.(event))
      this.terminate = () => frame.remove()
      loaded.catch((event) => this.onerror?.(event))
      script.src = address
      inside.document.head.append(script)
    }
  }
